# cmake -D IN=file -D OUT=file.c -D NAME=name -P embed.cmake: the bytes of a file as a C array.
file(READ ${IN} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
file(WRITE ${OUT} "#include \"proto/descriptors.h\"\nconst unsigned char ${NAME}[] = {\n${bytes}\n};\n"
                  "const size_t ${NAME}_bytes = sizeof ${NAME};\n")
